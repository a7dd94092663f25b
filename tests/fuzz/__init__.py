"""Coverage-guided fuzzing of all that reads what a peer or a borg that was taken over can send.

``make fuzz`` runs it; docs/building.md says how, and what it leaves behind.
"""
