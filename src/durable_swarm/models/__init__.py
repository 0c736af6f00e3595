"""Model calls: the request, the client, retries, and reading a reply whole or as a stream."""
