"""One function over many pictures, on this machine or a cluster: features, an index, a filter."""
