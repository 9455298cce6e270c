"""Interventions: sweeps of edited generations, and what they say."""
