"""The server half: owns the hypernetwork, the embeddings and the round loop."""
