"""Tables, sentences and plots made from results files: each suite is reported from its newest file."""
