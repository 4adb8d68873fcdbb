"""The parts of the conformance suite; piecework.testing.conformance puts them together."""
