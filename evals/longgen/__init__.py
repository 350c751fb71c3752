"""Long answers: measure what a model generates under repeated eviction, without needing a reasoning model."""
