"""The command `mpq`: one thin module per subcommand, named like it (`train_lm.py` is `mpq train-lm`)."""
