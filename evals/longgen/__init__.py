"""Long answers: what a model writes while its cache is evicted again and again, without a reasoning model."""
