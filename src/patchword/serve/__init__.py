"""The page and its JSON service: requests in, refusals or answers out."""
