"""The JSON API of the console: `/api/v1`, one module for each group of resources."""
