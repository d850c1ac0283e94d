"""Estimators judged on recorded requests: each predicted when it came, learnt when it would have finished."""
