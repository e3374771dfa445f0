"""Files to run the daemon by: of systemd, a container, Kubernetes. The templates are data."""
