"""Log messages on the terminal, beside a live display."""

import logging

import rich


class ConsoleHandler(logging.Handler):
    """Writes log messages through rich's console, so that they do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            rich.get_console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)
        except (Exception, SystemExit):
            # A terminal that is gone, or a full disk behind a redirection, is no reason to lose a training.
            self.handleError(record)
