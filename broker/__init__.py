"""Everything AMQP and nothing else: messages, connections, publishing, consuming, replies."""
