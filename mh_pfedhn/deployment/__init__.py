"""A real deployment, for its operators: thin wrappers over Flower's own `flower-superlink`, `flower-supernode`, `flwr`.

With TLS and SuperNode authentication unless the operator says otherwise.
"""
