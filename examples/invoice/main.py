"""An agent that answers with a value: it reads an invoice, and asks a tool for the customer's number.

OPENAI_API_KEY=... python examples/invoice/main.py
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from durable_swarm import Agent, DurableSwarm

MAIL = "Two lamps at 20 euros and a table at 150 euros, please. Regards, Ada of Analytical Engines."


class Line(BaseModel):
    """One line of an invoice."""

    item: str
    count: int = Field(ge=1)
    cents: int = Field(ge=0, description="price of one item")


class Invoice(BaseModel):
    """An invoice for a customer."""

    customer: int = Field(description="the number of the customer")
    lines: list[Line] = Field(min_length=1)

    @property
    def total(self) -> int:
        """The sum in cents."""
        return sum(line.count * line.cents for line in self.lines)


def customer_number(name: str) -> str:
    """Look up the number of a customer."""
    print(f"looking up {name}")
    return "1815"


clerk = Agent(
    name="Invoice clerk",
    instructions="Write the invoice for the mail. Look up the customer first.",
    functions=[customer_number],
    output_type=Invoice,
)


def main(client: Any = None) -> Invoice | None:
    """Return the invoice. Started again after a crash, the program continues."""
    with DurableSwarm(client) as swarm:
        response = swarm.run(clerk, [{"role": "user", "content": MAIL}], run_id="invoice-1")
        return response.output


if __name__ == "__main__":
    invoice = main()
    print(invoice)
    print(f"{invoice.total / 100:.2f}" if invoice else "no invoice")
