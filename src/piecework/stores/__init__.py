"""Where jobs live: one module or package per back end."""
