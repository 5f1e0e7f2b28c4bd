"""Files for other programs: alert rules for Prometheus, a dashboard for Grafana."""
