"""How a study is shown: the page, its figures and tables, other formats, the archive and its check."""
