"""Attacks, each with a control that shows honest use still works."""
