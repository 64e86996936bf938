"""`/v1/responses`: the endpoint, the response that a turn becomes, its events."""
