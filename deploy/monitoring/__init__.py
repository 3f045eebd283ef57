"""Prometheus and Grafana beside the service: what is scraped, alerted on and drawn."""
