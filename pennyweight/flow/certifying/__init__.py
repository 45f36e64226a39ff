"""From limits in words to a certificate: what is asked, of what, drawn and scored how, judged and recorded."""
