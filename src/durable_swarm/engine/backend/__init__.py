"""All uses of DBOS's non-public parts: launch, workflows, steps, queues, patches, the client."""
