"""How good the answers are: text overlap with the teacher, and tests that no training objective has seen."""
