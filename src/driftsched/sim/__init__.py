"""The same policies, estimators and scheduler in virtual time."""
