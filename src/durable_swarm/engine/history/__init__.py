"""Reading runs back: steps, messages, events, documents, forks. Executes nothing."""
