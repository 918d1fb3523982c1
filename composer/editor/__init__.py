"""What an editor shows of a spec while it is being written."""
