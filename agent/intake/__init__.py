"""Takes production requests in: HTTP (Open Inference Protocol v2), parsing, and the bounded queue between them."""
