"""One HTML file and the data of its figures, drawn from `undertow.results` or `undertow.findings` alone."""
