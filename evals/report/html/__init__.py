"""The report page: a whole results tree as one HTML file that needs no server and no network."""
