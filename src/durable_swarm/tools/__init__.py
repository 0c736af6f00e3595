"""Tools: their decorators, where a call is, how calls are made one by one or together, approval and questions."""
