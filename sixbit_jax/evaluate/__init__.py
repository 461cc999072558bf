"""How good videos are: numbers against a reference (`metrics`), and against their captions (`captions`)."""
