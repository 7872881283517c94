"""Everything AMQP and nothing else: messages, connections, publishing, consuming, the reply path."""
