"""Everything of DBOS that is not public: launch, workflows, steps, queues, patches, the client."""
