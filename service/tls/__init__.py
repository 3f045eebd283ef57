"""The certificate with which the service answers https. Knows no HTTP and no route."""
