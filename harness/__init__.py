"""Plan, schedule, train, evaluate, record."""
