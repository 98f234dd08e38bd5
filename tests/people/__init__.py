"""People: asked, reminded, answered, obeyed."""
