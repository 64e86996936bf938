"""`ziphius chat`: a conversation in the terminal, with a folder or with an address."""
