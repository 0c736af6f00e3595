"""`run_demo_loop`: a conversation in the terminal."""

from durable_swarm.repl.demo_loop import pretty_print_messages, process_and_print_streaming_response, run_demo_loop

__all__ = ["pretty_print_messages", "process_and_print_streaming_response", "run_demo_loop"]
