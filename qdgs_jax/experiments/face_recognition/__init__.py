"""Pre-training of face recognition on synthetic identities (QDGS, faces domain)."""
