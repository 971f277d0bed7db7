"""The server's HTTP: connections, routes, and the interfaces behind them."""
