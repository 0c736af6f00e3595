"""Asking models: the request, the client, retries, and a reply read whole or as a stream."""
