"""Programs that attack the service, inject faults and restart it, and report the outcome."""
