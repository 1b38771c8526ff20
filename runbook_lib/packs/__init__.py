"""The packs that travel with the library; each is found like any other (see `runbook_lib.book.pack`)."""
