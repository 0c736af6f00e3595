"""The web console: pages about the runs of one database. Pages are whole without script; `templates/` has them."""
