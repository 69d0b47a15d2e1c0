"""Images at fixed noise, their scores, and tables beside the paper's."""
