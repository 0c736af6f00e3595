"""Tools: their decorators, the context of a call, making calls in order or together, approval and questions."""
