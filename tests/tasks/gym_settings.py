"""Settings of reasoning-gym's families under which all of them are quick to test."""

# Families whose default problems are slow to make, at a smaller size (and a seed that needs few draws).
SMALLER = {
    "countdown": {"min_numbers": 3, "max_numbers": 3},
    "futoshiki": {"min_board_size": 4, "max_board_size": 4},
    "intermediate_integration": {"problem_types": ("linear",), "problem_type_weights": [1.0]},
    "knight_swap": {"max_nodes": 7, "min_pieces": 1, "max_pieces": 1, "min_steps": 1, "seed": 5},
    "puzzle24": {"min_value": 4, "operators": ("+", "*")},
    "quantum_lock": {"difficulty": 4},
    "zebra_puzzles": {"num_people": 3, "num_characteristics": 3},
}
# reasoning-gym ships no answer with these: their checkers judge any valid solution from the metadata alone.
NO_ORACLE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
# A mixture of other families: it cannot be made without naming them.
NO_DEFAULTS = {"composite"}
