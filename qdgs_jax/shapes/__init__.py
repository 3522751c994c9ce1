"""The built-in domain: drawings, captions, and how its models are trained."""
