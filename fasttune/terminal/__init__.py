"""What a person at a terminal sees and is asked: prompts, menus, tables, the tree of runs, the chat."""
