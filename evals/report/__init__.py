"""Show results in the terminal, as tables and figures, and as an HTML page. Reads files only and needs no model."""
