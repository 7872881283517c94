"""HTTP for every endpoint: bodies, events, middleware, the OpenAPI document, the page."""
